"""Operations that have several implementations, each with its jax.numpy reference and the choice between them."""
