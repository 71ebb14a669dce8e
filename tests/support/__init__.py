"""What tests share."""

import pytest

pytest.register_assert_rewrite(__name__)  # its assertions too say what they compared
