"""What takes longer than `make test` may: run by `make nightly`."""
