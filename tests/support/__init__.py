"""What the tests stand on: real agents, real mounts, an independent client, and a proxy that counts and breaks."""
