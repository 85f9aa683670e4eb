# Made here, and handed on by `terraform output -raw database_uri`; make_secrets.py puts it into the cluster.
resource "random_password" "database" {
  length  = 32
  special = false
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL from the cluster's nodes."
  vpc_id      = module.vpc.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = module.eks.node_security_group_id
  from_port                    = 5432
  to_port                      = 5432
  ip_protocol                  = "tcp"
}

resource "aws_db_parameter_group" "database" {
  name   = var.name
  family = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
}

resource "aws_db_instance" "database" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = "17"
  instance_class = var.database_class

  allocated_storage     = 20
  max_allocated_storage = 200
  storage_encrypted     = true

  db_name  = "mlflow"
  username = "mlflow"
  password = random_password.database.result

  db_subnet_group_name   = module.vpc.database_subnet_group_name
  parameter_group_name   = aws_db_parameter_group.database.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false

  backup_retention_period   = 14
  deletion_protection       = var.lasting
  skip_final_snapshot       = !var.lasting
  final_snapshot_identifier = "${var.name}-last"
}
