"""The whole application on one machine: the RTC simulator, AWS by moto, the Lambda runtime and the HTTP front."""
