"""What exists in AWS: one Pulumi program, one component per concern."""
