"""The Kubernetes operator: reconciles a GalaRun into worker pods."""
