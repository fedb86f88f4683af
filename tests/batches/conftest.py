from .fake_batches import fake_batches  # noqa: F401  # a fixture
