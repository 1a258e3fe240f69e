"""Decides how many instances each endpoint has and where: pure functions, no clock, no effects."""
