"""How much memory the app keeps over many requests, some of them broken: python tests/app_memory.py RUN [REQUESTS]

Prints the resident set after every twentieth request, and what the last hundred added.
"""

import contextlib
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Every twentieth request is one of these.
BROKEN = ({"num_steps": 10_000}, {"sampler": "none such"}, {"seed": "minus one"}, {"prompt": "x" * 5000}, {"size": 7})


def resident() -> float:
    """MiB of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def opened(run: str):
    """The app of a run, and a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        import gradio_client

        from tools.app import command

        served = command.open_app(command.parse_arguments(["--checkpoint", run]), pathlib.Path(folder))
        try:
            yield served, gradio_client.Client(served.address, verbose=False, download_files=False)
        finally:
            served.close()


def main(run: str, requests: int = 200) -> None:
    with opened(run) as (_, client):
        sizes, failed = [], 0
        for number in range(requests):
            wanted = {"prompt": f"a red apple number {number}", "seed": str(number)}
            wanted |= BROKEN[number // 20 % len(BROKEN)] if number % 20 == 10 else {}
            try:
                client.predict(**wanted, api_name="/draw")
            except Exception:
                failed += 1
            sizes.append(resident())
            if number % 20 == 19:
                print(f"{number + 1} requests, {failed} refused: {sizes[-1]:.0f} MiB", flush=True)
        half = requests // 2
        print(f"the last {requests - half} added {sizes[-1] - sizes[half - 1]:.1f} MiB to {sizes[half - 1]:.0f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
