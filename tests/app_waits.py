"""How long visitors wait who come at once: python tests/app_waits.py RUN [VISITORS [STEPS]]

Prints how long one alone waits, then each of them, and in how many calls of the denoiser's loop all were drawn.
"""

import sys
import time

from app_memory import opened


def main(run: str, visitors: int = 10, steps: int = 20) -> None:
    with opened(run) as (served, client):
        counts, draw_each = [], served.studio.pipeline.draw_each
        served.studio.pipeline.draw_each = lambda request, *rest: (
            counts.append(request.count),
            draw_each(request, *rest),
        )[1]

        def at_once(count: int) -> list[float]:
            """Seconds until each has its picture, in the order in which they are done."""
            begin, ends = time.perf_counter(), []
            jobs = [
                client.submit(
                    f"a red apple number {i}",
                    seed=str(i),
                    num_steps=steps,
                    api_name="/draw",
                    result_callbacks=[lambda *_: ends.append(time.perf_counter() - begin)],
                )
                for i in range(count)
            ]
            for job in jobs:
                job.result()
            while len(ends) < count:
                time.sleep(0.01)
            return ends

        # Once for every number of pictures that may be drawn together, so that nobody waits for the compiler.
        for count in range(1, 5):
            client.predict("warm", num_images=count, num_steps=2, api_name="/draw")
        print(f"one alone: {at_once(1)[0]:.2f} s", flush=True)
        counts.clear()
        ends = at_once(visitors)
        print(f"{visitors} at once: {', '.join(f'{end:.2f}' for end in ends)} s, drawn in calls of {counts}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
