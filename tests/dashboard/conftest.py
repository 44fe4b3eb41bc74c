"""The rights that each has in the eyes of each, as in the tests of rights."""

from tests.integration.test_rights import given as given
