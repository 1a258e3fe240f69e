"""Plays requests against a policy and supplies, by events, and says what it cost and who waited."""
