"""What ties the parts together on Ray: run folders, the local cluster, the training workers, the stages."""
