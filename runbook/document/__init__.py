"""Documents: from YAML text to the plain-JSON form that the engine works on."""
