"""GPU compute plugins. Each is found by the entry-point group `luciola.plugins`."""
