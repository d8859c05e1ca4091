"""What builds things around plop and is no part of the package; run from the repository."""
