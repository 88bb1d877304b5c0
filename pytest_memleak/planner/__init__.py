"""How a model is trained on a card that is too small for it: ProTrain's planner, which sees the whole model."""
