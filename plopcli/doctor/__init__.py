"""What could stop a run of days, and how long it will take: looked for before it begins."""
