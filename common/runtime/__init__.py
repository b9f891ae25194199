"""Files and folders, devices, the console: what knows neither pictures nor networks."""
