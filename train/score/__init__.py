"""How much a source delta promises for a target: scores, their matrix, its picture."""
