"""Many runs under one plan: methods or settings side by side, each over several seeds."""
