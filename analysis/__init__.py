"""What is shown: tables, leaderboard and figures, each a pure function of records."""
