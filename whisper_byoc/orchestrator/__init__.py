"""The side of the service that an orchestrator drives: streams over trickle channels."""
