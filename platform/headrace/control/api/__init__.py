"""The management API: answers `wire.ApiCall`s that a gateway has authenticated."""
