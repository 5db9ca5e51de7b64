from tests.integration.conftest import small_model as small_model
