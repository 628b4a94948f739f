"""Ground floor: config, randomness, parameters, data, models, local training, the grid of virtual clients, records."""
