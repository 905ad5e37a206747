"""Device meshes, sharding rules, and start-up of several processes."""
