"""Other people's clients of the API, each with packages of its own, against a real server: `make clients`."""
