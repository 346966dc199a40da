"""Programs that use this one as its users do. Each is run by a test."""
