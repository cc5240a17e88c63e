"""What operators touch: port, metrics, status, alarms, logs."""
