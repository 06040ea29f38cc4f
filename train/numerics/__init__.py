"""S_rel beside float64 on many nets: the contract's evidence."""
