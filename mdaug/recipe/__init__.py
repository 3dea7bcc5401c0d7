"""`mdaug augment`: the data choose how a classifier is trained on few images."""
