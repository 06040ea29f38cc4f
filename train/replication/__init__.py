"""Tables of the replication, and a comparison of the published curves with ours."""
