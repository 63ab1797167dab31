"""Job processes of this machine: fresh or forked, their groups, limits and ends."""
