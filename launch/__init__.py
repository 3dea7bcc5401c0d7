"""submitit launcher: starts the commands of mdaug on local ranks and knows nothing of their insides."""
