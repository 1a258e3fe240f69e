"""What a user's code and clients of the platform use: `@endpoint`, its spec, bundles and the client."""
