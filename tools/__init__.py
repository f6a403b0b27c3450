from pixart_jax.commands import end_quietly_while_loading, load_without_collecting

load_without_collecting()
end_quietly_while_loading()
