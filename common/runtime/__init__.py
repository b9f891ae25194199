"""Files, devices, processes, the console: what knows neither images nor networks."""
