from pixart_jax.commands import end_quietly_while_loading

end_quietly_while_loading()
