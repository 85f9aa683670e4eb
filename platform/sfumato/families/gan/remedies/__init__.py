"""Against forgetting and overfitting, and for a discriminator that changes gently."""
