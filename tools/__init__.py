from pixart_jax.commands import end_quietly_while_loading, load_without_collecting, start_with_huge_pages

start_with_huge_pages()
load_without_collecting()
end_quietly_while_loading()
