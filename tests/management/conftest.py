from tests.embeddings.conftest import far_end

__all__ = ["far_end"]
