"""To and from neighbours, one file each; a neighbour is imported when it is asked for."""
