"""A run put together: the weights it starts from, its parts started and stopped, and what the loop asks of them."""
