"""Skills for an agent that works in a shell on the cluster: a SKILL.md each, and installing them."""
