"""The manifests of a deployment on Kubernetes, as templates and rendered."""

PARTS = ("crd", "rbac", "discovery", "worker", "frontend")  # in the order in which to apply them
