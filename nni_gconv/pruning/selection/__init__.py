"""Which channels go: scores, coupled sets, costs and budgets."""
