"""The dashboard as code, and the alert rules, for whoever runs Prometheus and Grafana."""
