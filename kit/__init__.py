"""What tests and bench share: servers, processes, a proxy, an oracle, load, waiting."""
