"""A package, so that the bundled text ships in the wheel and importlib.resources finds it."""
