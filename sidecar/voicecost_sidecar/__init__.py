"""The sidecar: takes in records and webhooks, keeps the ledger, enforces budgets, answers."""
