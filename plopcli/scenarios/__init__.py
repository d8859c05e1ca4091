"""Tasks and protocols: which classes and images a step sees."""
